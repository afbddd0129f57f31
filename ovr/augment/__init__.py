"""What training rows are turned into while a model is fitted; never what it is validated, exported or used on."""
