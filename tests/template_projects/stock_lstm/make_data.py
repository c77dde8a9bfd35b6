import os
import random

random.seed(9)
os.makedirs("data", exist_ok=True)
close, trend, rows = 100.0, 0.0, ["date,close,volume"]
for day in range(400):
    trend = 0.8 * trend + random.gauss(0, 0.5)
    close += trend
    rows.append("2017-%03d,%.4f,%d" % (day, close, 1000 + 300 * abs(trend) + random.randint(0, 50)))
open("data/prices.csv", "w").write("\n".join(rows))
