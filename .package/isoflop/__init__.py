"""isoflop: how does this architecture scale?"""
