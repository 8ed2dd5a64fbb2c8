"""Shows stores: xarray, HTML, pictures."""
