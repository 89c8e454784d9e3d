//! `Blade`: one tray or server.

#![allow(clippy::duplicated_attributes, reason = "several derives and columns are what the macro takes")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A blade: what people want of it. Blades of a tranche are made by the operator; one can also be made by hand.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "whetstone.dev",
    version = "v1alpha1",
    kind = "Blade",
    plural = "blades",
    shortname = "bl",
    category = "whetstone",
    status = "BladeStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One tray or server with a serial number: delivered, burned in and replaced as a unit.",
    selectable = ".spec.tranche",
    selectable = ".spec.rack",
    selectable = ".spec.serial",
    selectable = ".spec.sku",
    selectable = ".status.phase",
    selectable = ".status.owner",
    printcolumn(name = "SKU", type_ = "string", json_path = ".spec.sku"),
    printcolumn(name = "TRANCHE", type_ = "string", json_path = ".spec.tranche"),
    printcolumn(name = "RACK", type_ = "string", json_path = ".spec.rack"),
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "OWNER", type_ = "string", json_path = ".status.owner"),
    printcolumn(name = "VERDICT", type_ = "string", json_path = ".status.verdict.outcome"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "SERIAL", type_ = "string", json_path = ".spec.serial", priority = 1),
    printcolumn(name = "NODE", type_ = "string", json_path = ".status.node", priority = 1),
    printcolumn(name = "WAITS-FOR", type_ = "string", json_path = ".status.wait.message", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63").message("a blade's name has at most 63 characters: it is also a node's name and a label")
)]
#[serde(rename_all = "camelCase")]
pub struct BladeSpec {
    /// The maker's serial number. It is the blade: a name, a rack and a tranche may change, this cannot.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a blade's serial cannot change: another serial is another blade"))]
    pub serial: String,
    /// SKU profile that it is delivered as (`hgx-h100`); its own GPUs are held against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub sku: Option<String>,
    /// The delivery that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub tranche: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub rack: Option<String>,
    /// Place in the rack, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub slot: Option<String>,
    /// GPUs joined by NVLink that are gated together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub nvlink_domain: Option<String>,
    /// Its Kubernetes node, if it is not called as the blade is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), pattern("^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub node_name: Option<String>,
    /// Who is to have it once it is proven: `kubernetes/<cluster>`, `slurm/<cluster>`, `inference`, `spare`; without it the
    /// tranche's. `nobody` takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127))]
    #[x_kube(validation = Rule::new("self.matches('^(nobody|spare|inference|(slurm|kubernetes)/[a-z0-9]([-a-z0-9]*[a-z0-9])?)$')").message("an owner is nobody, spare, inference, slurm/<cluster> or kubernetes/<cluster>"))]
    pub owner: Option<String>,
    /// Withhold it, until this is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<QuarantineSpec>,
    /// Raise it to have the blade burned in again, after a repair or in doubt.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("retest only counts up: raise it to ask for a burn-in"))]
    pub retest: i64,
    /// Suite of burn-ins outside of a tranche: quick, standard or soak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self in ['quick', 'standard', 'soak']").message("a suite is quick, standard or soak"))]
    pub suite: Option<String>,
    /// It has left the site for good.
    #[serde(default)]
    pub retired: bool,
}

/// A person's quarantine.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineSpec {
    /// Why, one line.
    #[schemars(length(min = 1, max = 300))]
    pub reason: String,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub by: Option<String>,
}

/// Where a blade is: the operator's word, rebuilt from the store if it is lost.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(oldSelf.sequence) || !has(self.sequence) || self.sequence >= oldSelf.sequence").message("a stale writer: the status is newer than this one"))]
#[x_kube(validation = Rule::new("!has(oldSelf.phase) || !has(self.phase) || self.phase == oldSelf.phase || self.phase != 'Ready' || oldSelf.phase == 'BurningIn'").message("a blade becomes Ready from BurningIn only"))]
#[x_kube(validation = Rule::new("!has(oldSelf.phase) || !has(self.phase) || self.phase == oldSelf.phase || self.phase != 'InService' || oldSelf.phase == 'Ready'").message("a blade comes into service from Ready only"))]
#[x_kube(validation = Rule::new("!has(self.phase) || self.phase != 'InService' || has(self.owner)").message("a blade in service has an owner"))]
#[serde(rename_all = "camelCase")]
pub struct BladeStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Expected, Discovered, Preparing, BurningIn, Ready, InService, Draining, Quarantined, Repairing, Sanitising or Retired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self in ['Expected','Discovered','Preparing','BurningIn','Ready','InService','Draining','Quarantined','Repairing','Sanitising','Retired']").message("not a phase"))]
    #[schemars(length(max = 32))]
    pub phase: Option<String>,
    /// When it came to this phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Counts its transitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub sequence: Option<i64>,
    /// Who has it; absent = nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 127))]
    pub owner: Option<String>,
    /// The last verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictStatus>,
    /// Why it is where it is, one line; empty where all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<WaitStatus>,
    /// The run that goes on, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// Open cases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub cases: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerdictStatus {
    /// pass, fail or inconclusive.
    #[x_kube(validation = Rule::new("self in ['pass','fail','inconclusive']").message("a verdict is pass, fail or inconclusive"))]
    #[schemars(length(max = 16))]
    pub outcome: String,
    #[schemars(length(max = 128))]
    pub code: String,
    #[schemars(length(max = 1024))]
    pub why: String,
    /// What is recommended: `replace`, `check_link`, …
    #[schemars(length(max = 64))]
    pub action: String,
    pub run: i64,
    pub at: Time,
}

/// What a blade waits for and who must act.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitStatus {
    /// Stable: `run`, `person`, `power`, …
    #[schemars(length(max = 64))]
    pub code: String,
    #[schemars(length(max = 1024))]
    pub message: String,
    /// whetstone, person, supplier or tenant.
    #[schemars(length(max = 32))]
    pub actor: String,
}
