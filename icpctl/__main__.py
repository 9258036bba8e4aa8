from icpctl.cli import main

main()
