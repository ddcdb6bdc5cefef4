"""Stands before the package of this name in the path of Ray's processes.

jsonschema, which each of them imports, would take it where it is there (it comes with JupyterLab), and its import takes
two seconds; a Ray has five processes of its own, and gives up when they are not there in 15 seconds.
"""
raise ImportError("left out: no test asks for it")
