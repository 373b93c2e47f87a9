"""giblet.verify"""
