# Look for a Python and run a task of tasks.py with it: scripts\tasks.ps1 setup|demo|check|test [ARGUMENTS].
# It could not be run where it was written: there was no Windows.
$python = Join-Path $PSScriptRoot '..\.venv\Scripts\python.exe'
if (-not (Test-Path $python)) {
    $python = if (Get-Command py -ErrorAction SilentlyContinue) { 'py' } else { 'python' }
}
& $python (Join-Path $PSScriptRoot 'tasks.py') @args
exit $LASTEXITCODE
