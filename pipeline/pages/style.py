"""The look of `pipeline.pages.page`: light, dark and printed."""

MARK_COLOURS = (
    "#ffb000",
    "#46c3ff",
    "#ff7a66",
    "#5fe38c",
    "#dd9bff",
    "#ffe94d",
    "#ff9fc6",
    "#a8b8ff",
)
"""Of linked marks; bright, for marks lie on photographs, dark or light."""
MOST_LINKS = 40
"""Numbers up to which pointing at a mark lights up its like; each costs the page a line of style."""

# Colours: Okabe and Ito's palette, which stays apart for colour-blind readers; dark mode lightens it.
STYLE = """
:root{--paper:#fff;--panel:#f7f7f5;--ink:#1c1d1f;--soft:#63666b;--line:#dcdcd8;--warn:#8a4b00;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#b2579a;--s4:#c98500;--s5:#3d9bd6;--s6:#6f7378}
@media screen and (prefers-color-scheme:dark){:root{--paper:#15171a;--panel:#1d2024;--ink:#e8e8e6;
--soft:#a0a4aa;--line:#34383e;--warn:#f0b861;--s0:#58b0e6;--s1:#f28b4b;--s2:#3fc79d;--s3:#e39ac8;
--s4:#efbb47;--s5:#93d0f5;--s6:#b3b7bc}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
header,main{max-width:1120px;margin:0 auto;padding:0 28px}
header{padding-top:44px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:0 0 6px;font-weight:650}
header p,.lead,.figures p,figcaption{color:var(--soft)}
header p{margin:0 0 8px}
main{padding-bottom:80px}
section{margin-top:44px;border-top:1px solid var(--line);padding-top:20px}
h2{font-size:21px;margin:0 0 6px;letter-spacing:-.01em;font-weight:620}
h3{font-size:16px;margin:0 0 4px;font-weight:620}
p{margin:0 0 12px;max-width:78ch}
.block{margin-top:28px}
.callout{border-left:3px solid var(--warn);background:var(--panel);padding:10px 16px;margin:14px 0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
gap:26px 30px;margin:18px 0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:1px;
background:var(--line);border:1px solid var(--line);border-radius:8px;overflow:hidden;margin:18px 0}
.figures>div{background:var(--paper);padding:14px 16px;display:flex;flex-direction:column}
.figures dt{font-size:13px;color:var(--soft);order:1}
.figures dd{margin:0;font-size:25px;font-weight:620;letter-spacing:-.02em;line-height:1.25}
.figures p{order:2;margin:0;font-size:12.5px}
.figures dd,td.number{font-variant-numeric:tabular-nums}
.table{overflow-x:auto;margin:14px 0}
table{border-collapse:collapse;font-size:13.5px;min-width:min(100%,560px)}
th{text-align:left;font-weight:600;color:var(--soft);border-bottom:1px solid var(--soft)}
th,td{padding:6px 18px 6px 0;vertical-align:top;overflow-wrap:break-word}
td{border-bottom:1px solid var(--line)}
th.number,td.number{text-align:right}
details{margin:12px 0}
summary{cursor:pointer;color:var(--soft)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;padding:0;margin:4px 0 8px;
font-size:12.5px;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:6px}
.legend svg{width:22px;height:12px;flex:none}
.swatch{display:inline-block;width:18px;height:12px}
.swatch.mark{position:static}
td .swatch{width:30px;height:18px}
.sheet{display:flex;flex-wrap:wrap;gap:8px;margin:12px 0}
.sheet::after{content:"";flex:1000 1 0}
.sheet figure{margin:0;min-width:0;break-inside:avoid}
.sheet figcaption{font-size:10.5px;line-height:1.35;overflow-wrap:anywhere;margin-top:3px;
width:0;min-width:100%}
.frame{position:relative;overflow:hidden;background:var(--panel);border-radius:3px}
.frame img{display:block;width:100%;height:100%}
.mark{position:absolute;border:1.5px solid;font-weight:400}
.mark.identity{border-color:#ffb000;box-shadow:0 0 0 .5px #000a}
.mark.unlabelled{border-color:#46c3ff;box-shadow:0 0 0 .5px #000a}
.mark.ignore{border:1px dashed #fff;box-shadow:0 0 0 .5px #000a;
background:repeating-linear-gradient(45deg,#0007 0 3px,#fff5 3px 6px)}
.mark span{position:absolute;left:0;top:0;font-size:9.5px;line-height:1.25;padding:0 3px;
background:#000c;color:#fff;white-space:nowrap}
.mark span.left{left:auto;right:0}
.mark.match{border:2.5px solid var(--k,#ffb000);box-shadow:0 0 0 1px #000a,inset 0 0 0 1px #0008}
.mark.detect{border:2px dashed var(--k,#46c3ff);outline:1px solid #0006}
.mark.right{border:3px solid #5fe38c;box-shadow:0 0 0 1px #000a}
.mark.right span{background:#0a5c2b}
.mark.wrong{border:2.5px dashed #ff7a66;box-shadow:0 0 0 1px #0008}
.mark.wrong span{background:#8c1d0d}
.mark.link>span{background:var(--k);color:#000;font-weight:650}
.sheet .pair{margin-bottom:14px}
.views{display:flex;gap:4px}
.padding{position:absolute;
background:repeating-linear-gradient(135deg,#fff2 0 1px,transparent 1px 7px);border:0 solid #fff9}
.chip{white-space:nowrap;margin-right:8px;color:var(--ink)}
.chip b{display:inline-block;min-width:15px;padding:0 3px;margin-right:3px;border-radius:3px;
text-align:center;background:var(--k);color:#000;font-weight:650}
.chip b:hover{outline:2px solid var(--ink)}
.pair figcaption p{margin:0}
.pair .key{color:var(--ink);font-weight:600}
.plot{margin:0;break-inside:avoid}
.plot figcaption{color:var(--ink);font-weight:600;font-size:13.5px}
.plot .lead{font-size:12.5px;margin:2px 0 0}
.plot svg.chart{display:block;width:100%;height:auto}
.chart text{font-size:11px;fill:var(--soft)}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.chart .raw{fill:none;stroke-width:1;opacity:.28;stroke-linejoin:round}
.chart .reference{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:2 4}
.chart .value{fill:var(--ink)}
@media print{body{font-size:11pt}header,main{max-width:none;padding:0}section{break-inside:auto}
details::details-content{content-visibility:visible;block-size:auto}
table{font-size:8.5pt}th,td{padding-right:10px}
h2,h3,summary,.lead{break-after:avoid}.columns{grid-template-columns:1fr 1fr}}
"""

_LIKE = ",".join(f".pair:has(.q{number}:hover) .q{number}" for number in range(MOST_LINKS))
LINK_STYLE = (
    "".join(f".k{number}{{--k:{colour}}}" for number, colour in enumerate(MARK_COLOURS))
    + f".pair:has(.link:hover) .link{{opacity:.15}}{_LIKE}{{opacity:1;z-index:1}}"
)
