from quire.main import main

main()
