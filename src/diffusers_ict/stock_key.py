"""The key under which a stock scheduler_config.json carries what stock diffusers cannot express.

Stock code neither warns of it nor drops it, because its name begins with an underscore.
"""

STOCK_KEY = "_ict"
