//! Panels and dashboards as values, and their Grafana JSON (the classic model, which every Grafana from 10 on reads).

use serde_json::{Value, json};

/// Version of Grafana's dashboard schema (Grafana 11). Later ones migrate it when they load it.
const SCHEMA: u32 = 39;
/// Grafana's grid is this wide.
const GRID: u32 = 24;

/// Which kind of panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    Timeseries,
    /// The same, one on top of the other.
    Stacked,
    Stat,
    Table,
    Heatmap,
    BarGauge,
    /// Markdown, no query.
    Text,
}

/// One query.
#[derive(Debug, Clone)]
pub struct Target {
    pub expr: String,
    /// Grafana's legend format: `{{phase}}`.
    pub legend: String,
}

/// One panel.
#[derive(Debug, Clone)]
pub struct Panel {
    pub draw: Draw,
    pub title: String,
    /// What it shows and when to act; markdown for a text panel.
    pub description: String,
    /// Grafana's unit id; empty for text.
    pub unit: String,
    pub targets: Vec<Target>,
    /// Value from which on it turns orange and red.
    pub limits: Option<(f64, f64)>,
    /// Low values are the bad ones: red below the first, orange below the second.
    pub low_is_bad: bool,
    /// Of 24 columns.
    pub width: u32,
    pub height: u32,
    pub max: Option<f64>,
    pub text: String,
}

impl Panel {
    pub fn new(draw: Draw, title: &str, unit: &str, description: &str) -> Panel {
        let (width, height) = match draw {
            Draw::Stat => (4, 4),
            Draw::Table => (12, 8),
            Draw::Text => (24, 4),
            _ => (12, 8),
        };
        Panel {
            draw,
            title: title.into(),
            description: description.into(),
            unit: unit.into(),
            targets: Vec::new(),
            limits: None,
            low_is_bad: false,
            width,
            height,
            max: None,
            text: String::new(),
        }
    }

    pub fn text(title: &str, description: &str, text: &str) -> Panel {
        Panel { text: text.into(), ..Panel::new(Draw::Text, title, "", description) }
    }

    pub fn target(mut self, legend: &str, expr: impl Into<String>) -> Panel {
        self.targets.push(Target { expr: expr.into(), legend: legend.into() });
        self
    }

    /// Orange from `warn`, red from `bad`.
    pub fn limits(mut self, warn: f64, bad: f64) -> Panel {
        self.limits = Some((warn, bad));
        self
    }

    /// Red below `bad`, orange below `warn`.
    pub fn floor(mut self, bad: f64, warn: f64) -> Panel {
        self.limits = Some((bad, warn));
        self.low_is_bad = true;
        self
    }

    pub fn width(mut self, width: u32) -> Panel {
        self.width = width;
        self
    }

    pub fn height(mut self, height: u32) -> Panel {
        self.height = height;
        self
    }

    pub fn max(mut self, max: f64) -> Panel {
        self.max = Some(max);
        self
    }

    fn kind(&self) -> &'static str {
        match self.draw {
            Draw::Timeseries | Draw::Stacked => "timeseries",
            Draw::Stat => "stat",
            Draw::Table => "table",
            Draw::Heatmap => "heatmap",
            Draw::BarGauge => "bargauge",
            Draw::Text => "text",
        }
    }

    /// Asked for one moment instead of a time range.
    pub fn instant(&self) -> bool {
        matches!(self.draw, Draw::Table | Draw::BarGauge | Draw::Stat)
    }

    fn json(&self, id: u32, x: u32, y: u32) -> Value {
        let mut panel = json!({
            "id": id,
            "type": self.kind(),
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "options": self.options(),
        });
        if self.draw == Draw::Text {
            return panel;
        }
        panel["datasource"] = datasource();
        panel["fieldConfig"] = json!({"defaults": self.defaults(), "overrides": []});
        panel["targets"] = self.targets.iter().enumerate().map(|(n, target)| self.query(n, target)).collect();
        if self.draw == Draw::Table {
            // A moment's table: the column with the moment says nothing.
            panel["transformations"] = json!([
                {"id": "organize", "options": {"excludeByName": {"Time": true}, "renameByName": {"Value": self.title}}}
            ]);
        }
        panel
    }

    fn query(&self, n: usize, target: &Target) -> Value {
        let format = match self.draw {
            Draw::Table => "table",
            Draw::Heatmap => "heatmap",
            _ => "time_series",
        };
        // Letters A, B, C …: no panel has more than a handful of queries.
        let letter = char::from(b'A' + u8::try_from(n % 26).unwrap_or(0));
        json!({
            "refId": letter.to_string(),
            "datasource": datasource(),
            "editorMode": "code",
            "expr": target.expr,
            "legendFormat": target.legend,
            "format": format,
            "instant": self.instant(),
            "range": !self.instant(),
        })
    }

    fn options(&self) -> Value {
        let reduce = json!({"calcs": ["lastNotNull"], "fields": "", "values": false});
        match self.draw {
            Draw::Timeseries | Draw::Stacked => json!({
                "legend": {"showLegend": true, "displayMode": "table", "placement": "right", "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Draw::Stat => json!({
                "reduceOptions": reduce, "colorMode": if self.limits.is_some() { "background" } else { "value" },
                "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "auto", "wideLayout": true,
            }),
            Draw::Table => json!({"showHeader": true, "cellHeight": "sm", "footer": {"show": false}}),
            Draw::BarGauge => json!({
                "reduceOptions": reduce, "displayMode": "gradient", "orientation": "horizontal", "showUnfilled": true,
                "valueMode": "color", "namePlacement": "auto", "minVizHeight": 16, "minVizWidth": 8,
                "legend": {"showLegend": true, "displayMode": "list", "placement": "bottom", "calcs": []},
            }),
            Draw::Heatmap => json!({
                "calculate": false,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential", "exponent": 0.5, "steps": 64},
                "yAxis": {"axisPlacement": "left", "unit": self.unit, "reverse": false},
                "rowsFrame": {"layout": "auto"},
                "legend": {"show": true},
                "tooltip": {"mode": "single", "yHistogram": false, "showColorScale": true},
                "filterValues": {"le": 1e-9},
            }),
            Draw::Text => json!({"mode": "markdown", "content": self.text}),
        }
    }

    fn defaults(&self) -> Value {
        let steps = match (self.limits, self.low_is_bad) {
            (None, _) => json!([{"color": "blue", "value": null}]),
            (Some((warn, bad)), false) => json!([
                {"color": "green", "value": null}, {"color": "orange", "value": warn}, {"color": "red", "value": bad}
            ]),
            (Some((bad, warn)), true) => json!([
                {"color": "red", "value": null}, {"color": "orange", "value": bad}, {"color": "green", "value": warn}
            ]),
        };
        let mode = if matches!(self.draw, Draw::Timeseries | Draw::Stacked) {
            "palette-classic"
        } else {
            "thresholds"
        };
        let mut defaults = json!({
            "unit": self.unit,
            "color": {"mode": mode},
            "thresholds": {"mode": "absolute", "steps": steps},
            "noValue": "no data",
        });
        if matches!(self.draw, Draw::Timeseries | Draw::Stacked) {
            let stacked = self.draw == Draw::Stacked;
            defaults["custom"] = json!({
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": if stacked { 40 } else { 8 }, "showPoints": "never",
                "spanNulls": false, "stacking": {"mode": if stacked { "normal" } else { "none" }, "group": "A"},
                "thresholdsStyle": {"mode": if self.limits.is_some() { "dashed" } else { "off" }},
            });
        }
        if let Some(max) = self.max {
            defaults["max"] = json!(max);
            defaults["min"] = json!(0);
        }
        defaults
    }
}

/// A choice at the top of a dashboard: the values of a label.
#[derive(Debug, Clone)]
pub struct Variable {
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    /// Series and label that the values come from.
    pub series: &'static str,
    pub label: &'static str,
}

impl Variable {
    fn json(&self) -> Value {
        let query = format!("label_values({}, {})", self.series, self.label);
        json!({
            "name": self.name, "label": self.title, "description": self.description, "type": "query",
            "datasource": datasource(), "definition": query, "query": {"query": query, "refId": "values"},
            "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*", "hide": 0, "regex": "",
            "current": {"selected": true, "text": ["All"], "value": ["$__all"]}, "options": [],
        })
    }
}

/// A heading and what stands under it.
#[derive(Debug, Clone)]
pub struct Row {
    pub title: &'static str,
    pub panels: Vec<Panel>,
}

/// One dashboard; its file is `<name>.json`.
#[derive(Debug, Clone)]
pub struct Dashboard {
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub variables: Vec<Variable>,
    pub rows: Vec<Row>,
}

impl Dashboard {
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }

    /// As Grafana reads it. The same dashboard gives the same bytes.
    pub fn json(&self) -> Value {
        let mut panels = Vec::new();
        let (mut id, mut y) = (0, 0);
        for row in &self.rows {
            id += 1;
            panels.push(json!({
                "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": GRID, "h": 1},
            }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > GRID {
                    y += tallest;
                    (x, tallest) = (0, 0);
                }
                id += 1;
                panels.push(panel.json(id, x, y));
                x += panel.width;
                tallest = tallest.max(panel.height);
            }
            y += tallest;
        }
        let mut variables = vec![json!({
            "name": "datasource", "label": "Prometheus", "description": "The Prometheus that scrapes this site",
            "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 0, "regex": "", "multi": false,
            "includeAll": false, "current": {}, "options": [],
        })];
        variables.extend(self.variables.iter().map(Variable::json));
        json!({
            "uid": format!("whetstone-{}", self.name),
            "title": self.title,
            "description": self.description,
            "tags": ["whetstone"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "timezone": "browser",
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timepicker": {},
            "annotations": {"list": []},
            "links": [{
                "type": "dashboards", "title": "Whetstone", "tags": ["whetstone"], "asDropdown": true,
                "includeVars": false, "keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
            }],
            "templating": {"list": variables},
            "panels": panels,
        })
    }
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}
