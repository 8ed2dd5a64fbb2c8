from parbake.cli import main

main(prog_name="parbake")
