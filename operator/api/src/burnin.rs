//! `BurnIn`: one run of a suite on one blade.

#![allow(clippy::duplicated_attributes, reason = "several derives and columns are what the macro takes")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Label on the objects that the operator made itself, for a run that there is: the run's number. One without it is a wish.
pub const RUN_LABEL: &str = "whetstone.dev/run";

/// One run of a suite on one blade. The operator makes one for each run; one made by hand asks for a burn-in of the blade.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "whetstone.dev",
    version = "v1alpha1",
    kind = "BurnIn",
    plural = "burnins",
    singular = "burnin",
    shortname = "bi",
    category = "whetstone",
    status = "BurnInStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One run of a burn-in suite on one blade.",
    selectable = ".spec.blade",
    selectable = ".status.phase",
    printcolumn(name = "BLADE", type_ = "string", json_path = ".spec.blade"),
    printcolumn(name = "RUN", type_ = "integer", json_path = ".status.run"),
    printcolumn(name = "SUITE", type_ = "string", json_path = ".spec.suite"),
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "PROGRESS", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "WHY", type_ = "string", json_path = ".status.why"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BurnInSpec {
    /// Name of the blade.
    #[schemars(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a run's blade cannot change: make another BurnIn"))]
    pub blade: String,
    /// quick, standard, soak, or what the blade's tranche names.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a run's suite cannot change: make another BurnIn"))]
    pub suite: String,
    /// Why it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 300))]
    pub reason: Option<String>,
}

#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(oldSelf.run) || (has(self.run) && self.run == oldSelf.run)").message("a run keeps its number"))]
#[x_kube(validation = Rule::new("!has(oldSelf.phase) || !(oldSelf.phase in ['Passed','Failed','Inconclusive','Cancelled']) || (has(self.phase) && self.phase == oldSelf.phase)").message("a verdict does not change"))]
#[serde(rename_all = "camelCase")]
pub struct BurnInStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub run: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<BurnInPhase>,
    /// `gemm-bf16 3/9 41 %`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub progress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub why: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
}

/// How far a run is.
#[derive(schemars::JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BurnInPhase {
    Pending,
    Running,
    Passed,
    Failed,
    Inconclusive,
    /// Lost or taken back.
    Cancelled,
}
