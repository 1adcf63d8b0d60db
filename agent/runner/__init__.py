"""The child process that holds models (`child`), and the supervisor's side of it (`process`)."""
