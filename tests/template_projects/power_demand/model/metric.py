# none needed: the loss says it all
