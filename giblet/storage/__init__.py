"""giblet.storage"""
