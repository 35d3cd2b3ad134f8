"""One self-contained HTML report per run: text, tables and plots; no network, dark or light.

report = Report("Evaluation of KuaiRand")
report.heading("Test")
report.table(["model", "AUC"], [["INFNet", 0.761], ["DIN", 0.748]], caption="2,400 rows")
fig, axes = figure()
axes.plot(steps, losses)
report.plot(fig, caption="Training loss")
report.write(out / "report.html")
"""

from rayrun.report.page import Link, Report, Value
from rayrun.report.plots import figure

__all__ = ["Link", "Report", "Value", "figure"]
