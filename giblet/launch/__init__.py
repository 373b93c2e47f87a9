"""giblet.launch"""
