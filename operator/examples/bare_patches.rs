//! How fast a client that does nothing else brings taints and cordons to the nodes of a cluster: what the operator's own figure
//! is to be held against. `bare_patches KUBECONFIG PREFIX FROM TO`: the nodes `PREFIX` + five digits, `FROM..TO`; one JSON line.

use std::path::Path;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

/// As many as the operator has on their way.
const AT_ONCE: usize = 64;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, prefix, from, to] = args.as_slice() else {
        anyhow::bail!("bare_patches KUBECONFIG PREFIX FROM TO");
    };
    let nodes: Api<Node> = Api::all(whetstone_operator::cluster::client(Some(Path::new(kubeconfig))).await?);
    let (from, to): (usize, usize) = (from.parse()?, to.parse()?);
    let taints = json!([
        {"key": "whetstone.dev/withheld", "value": "fault", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
    ]);
    let patch = Patch::Merge(json!({ "spec": { "taints": taints, "unschedulable": true } }));
    let parameters = PatchParams::default();
    let begun = Instant::now();
    futures::stream::iter((from..to).map(|number| {
        let (nodes, patch, parameters) = (&nodes, &patch, &parameters);
        async move { nodes.patch_metadata(&format!("{prefix}{number:05}"), parameters, patch).await }
    }))
    .buffer_unordered(AT_ONCE)
    .try_for_each(|_| async { Ok(()) })
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{}", json!({ "nodes": to - from, "seconds": seconds, "per_s": (to - from) as f64 / seconds }));
    Ok(())
}
