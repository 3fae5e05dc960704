"""What commands print, one file each, out of what `console` has for all of them."""
