"""giblet.checkpoint"""
