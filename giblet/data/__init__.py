"""giblet.data"""
