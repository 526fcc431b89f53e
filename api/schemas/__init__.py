"""Response bodies. Each module has the models of one kind of object and the functions that fill them from rows."""
