# The twin of scripts/test for Windows: powershell -ExecutionPolicy Bypass -File scripts\test.ps1
& (Join-Path $PSScriptRoot 'tasks.ps1') test @args
exit $LASTEXITCODE
