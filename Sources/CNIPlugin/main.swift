import Glibc

exit(Command.main())
