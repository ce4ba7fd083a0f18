"""`lrm inspect`: answers of models beside their pictures, on a page of this machine."""
