"""Command line, cluster, signals and compilation around a program."""
