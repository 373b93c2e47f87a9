"""giblet.training"""
