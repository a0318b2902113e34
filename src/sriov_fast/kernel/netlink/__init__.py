"""The plain implementation of rtnetlink, by topic; ``kernel/_nl_py.py`` has its interface."""
