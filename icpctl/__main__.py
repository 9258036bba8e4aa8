from icpctl.cli.app import main

main()
