"""giblet.models"""
