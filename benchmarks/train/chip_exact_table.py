def document(kept):
    return "todo"
