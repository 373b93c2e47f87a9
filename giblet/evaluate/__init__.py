"""giblet.evaluate"""
