"""Ray sessions, storage, job submission and the frame of every command line. Imports none of our other packages."""
