//! `Tranche`: blades that are delivered, stabilised and accepted together.

#![allow(clippy::duplicated_attributes, reason = "several derives and columns are what the macro takes")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Blades of one tranche at most: its object has to stay well below the apiserver's 1.5 MiB.
pub const MAX_TRANCHE_BLADES: usize = 5000;

/// A delivery: which serials, how they are burned in, what has to be proven before they serve.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "whetstone.dev",
    version = "v1alpha1",
    kind = "Tranche",
    plural = "tranches",
    shortname = "tr",
    category = "whetstone",
    status = "TrancheStatus",
    derive = "PartialEq",
    doc = "Blades that are delivered together, and burned in, judged and accepted together.",
    selectable = ".status.phase",
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "EXPECTED", type_ = "integer", json_path = ".status.counts.expected"),
    printcolumn(name = "BURNING", type_ = "integer", json_path = ".status.counts.burningIn"),
    printcolumn(name = "READY", type_ = "integer", json_path = ".status.counts.ready"),
    printcolumn(name = "SERVING", type_ = "integer", json_path = ".status.counts.inService"),
    printcolumn(name = "OUT", type_ = "integer", json_path = ".status.counts.quarantined"),
    printcolumn(name = "MISSING", type_ = "integer", json_path = ".status.counts.missing"),
    printcolumn(name = "YIELD", type_ = "string", json_path = ".status.yield"),
    printcolumn(name = "SUMMARY", type_ = "string", json_path = ".status.summary", priority = 1),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63").message("a tranche's name has at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.power) || !has(self.power.rackWatts) || self.power.rackWatts >= self.power.bladeWatts").message("power.rackWatts is less than one blade draws: nothing could ever be burned in"))]
#[x_kube(validation = Rule::new("!has(self.power) || !has(self.power.trancheWatts) || self.power.trancheWatts >= self.power.bladeWatts").message("power.trancheWatts is less than one blade draws: nothing could ever be burned in"))]
#[x_kube(validation = Rule::new("has(self.suiteText) || self.suite in ['quick', 'standard', 'soak']").message("suite is quick, standard or soak; another name needs suiteText"))]
pub struct TrancheSpec {
    /// The manifest, by serial. A serial stands once.
    #[schemars(length(max = 5000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["serial"]))]
    pub blades: Vec<ExpectedBlade>,
    /// quick (3 min), standard (30 min), soak (hours), or the name of `suiteText`.
    #[schemars(length(min = 1, max = 63))]
    pub suite: String,
    /// A suite of one's own, TOML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub suite_text: Option<String>,
    /// Blades burned in at once at most.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 5000))]
    pub concurrency: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerSpec>,
    #[serde(default)]
    pub gates: GatesSpec,
    /// Further tries where a run was inconclusive.
    #[serde(default = "default_retries")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i64,
    /// Probability that the comparison with the cohort accuses a healthy device.
    #[serde(default = "default_fpr")]
    #[x_kube(validation = Rule::new("self >= 0.000001 && self <= 0.2").message("fpr is a probability from 0.000001 to 0.2"))]
    pub fpr: f64,
    /// Who gets the blades that pass: `kubernetes/<cluster>`, …; without it they stay free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127))]
    #[x_kube(validation = Rule::new("self.matches('^(spare|inference|(slurm|kubernetes)/[a-z0-9]([-a-z0-9]*[a-z0-9])?)$')").message("an owner is spare, inference, slurm/<cluster> or kubernetes/<cluster>"))]
    pub owner: Option<String>,
    /// Start no further burn-in.
    #[serde(default)]
    pub paused: bool,
    /// When all of it has to be there; what has not come by then is overdue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Time>,
}

fn default_concurrency() -> i64 {
    64
}
fn default_retries() -> i64 {
    1
}
fn default_fpr() -> f64 {
    0.01
}

/// A blade as the supplier's list has it.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedBlade {
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub serial: String,
    /// What it is to be called; without it the serial in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub sku: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub rack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub slot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub nvlink_domain: Option<String>,
}

/// Watts.
#[derive(KubeSchema, Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PowerSpec {
    /// What one blade draws under burn-in.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub blade_watts: i64,
    /// What burn-ins may draw at once in one rack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub rack_watts: Option<i64>,
    /// What burn-ins of this tranche may draw at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub tranche_watts: Option<i64>,
}

/// What has to be proven before anything serves.
#[derive(KubeSchema, Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatesSpec {
    /// Blades of a rack that have to have passed, percent of those in this tranche; 0 = no gate.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub rack_percent: i64,
    /// Every member of an NVLink domain has to have passed.
    #[serde(default = "yes")]
    pub whole_domain: bool,
}

fn yes() -> bool {
    true
}

impl Default for GatesSpec {
    fn default() -> Self {
        GatesSpec { rack_percent: 0, whole_domain: true }
    }
}

#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrancheStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Waiting (nothing has come), BurningIn, Stable (all that came is decided) or Accepted (all of it came, too).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self in ['Waiting','BurningIn','Stable','Accepted']").message("not a phase of a tranche"))]
    #[schemars(length(max = 32))]
    pub phase: Option<String>,
    #[serde(default)]
    pub counts: CountsStatus,
    /// Passed of all that were decided: `75.0 % (12 of 16)`.
    #[serde(default, rename = "yield", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub yield_: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub summary: Option<String>,
    /// The first of the serials that have not come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub missing: Vec<String>,
    /// Serials that another tranche has already: `serial (tranche)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub duplicates: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

#[derive(KubeSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CountsStatus {
    /// All that the manifest lists.
    #[serde(default)]
    pub expected: i64,
    #[serde(default)]
    pub discovered: i64,
    #[serde(default)]
    pub burning_in: i64,
    #[serde(default)]
    pub ready: i64,
    #[serde(default)]
    pub in_service: i64,
    #[serde(default)]
    pub quarantined: i64,
    #[serde(default)]
    pub retired: i64,
    /// Those of them that have not come yet.
    #[serde(default)]
    pub missing: i64,
    #[serde(default)]
    pub duplicates: i64,
}
