# The twin of scripts/demo for Windows: powershell -ExecutionPolicy Bypass -File scripts\demo.ps1
& (Join-Path $PSScriptRoot 'tasks.ps1') demo @args
exit $LASTEXITCODE
