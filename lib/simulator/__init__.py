"""What a strategy costs on hardware: layer records, cost tables, the budget and the models that fill the tables."""
