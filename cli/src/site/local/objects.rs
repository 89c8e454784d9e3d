//! What a site has in its cluster before any blade comes: kinds, admission policies, credentials, nodes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::json;
use whetstone_api::node::{BLADE, TAINT, UNPROVEN};

use super::state::{Made, MadeKind, State};
use crate::input_error;
use crate::site::access::Site;
use crate::site::failure::OrExit as _;
use crate::site::ops::{FOLDER, NAMESPACE, SECRET};

include!(concat!(env!("OUT_DIR"), "/policies.rs"));

/// Until the apiserver serves a new kind.
const SERVED: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

fn params() -> PatchParams {
    PatchParams::apply("whet").force()
}

/// Records what was not there before, so that `down` takes away just that.
async fn note(state: &mut State, kind: MadeKind, name: &str, there: bool) -> anyhow::Result<()> {
    let known = state.made.iter().any(|made| made.kind == kind && made.name == name);
    if there || known {
        return Ok(());
    }
    state.change(|state| state.made.push(Made { kind, name: name.to_owned() }))
}

/// Kinds, namespace and policies.
pub async fn prepare(site: &Site, state: &mut State) -> anyhow::Result<()> {
    let crds: Api<CustomResourceDefinition> = site.all();
    for manifest in whetstone_api::manifests()? {
        let name = manifest.crd.name_any();
        let what = format!("crd {name}");
        let there = crds.get_opt(&name).await.map_err(|e| site.failure(&what, e)).or_exit()?;
        note(state, MadeKind::Crd, &name, there.is_some()).await?;
        crds.patch(&name, &params(), &Patch::Apply(&manifest.crd))
            .await
            .map_err(|e| site.failure(&what, e))
            .or_exit()?;
    }
    let namespaces: Api<Namespace> = site.all();
    let there = namespaces.get_opt(NAMESPACE).await.map_err(|e| site.failure("namespace", e)).or_exit()?;
    if there.as_ref().is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Err(input_error(format!("namespace {NAMESPACE} is being deleted; wait until it is gone")));
    }
    if there.is_none() {
        note(state, MadeKind::Namespace, NAMESPACE, false).await?;
        let object = Namespace {
            metadata: kube::api::ObjectMeta { name: Some(NAMESPACE.into()), ..Default::default() },
            ..Namespace::default()
        };
        namespaces
            .create(&PostParams::default(), &object)
            .await
            .map_err(|e| site.failure("namespace", e))
            .or_exit()?;
    }
    for text in POLICIES {
        policies(site, state, text).await?;
    }
    served(site).await
}

/// The documents of one file. A kind that this Kubernetes does not serve is left out: the taint is the operator's anyway, the
/// policies close the window before it.
async fn policies(site: &Site, state: &mut State, text: &str) -> anyhow::Result<()> {
    for document in serde_norway::Deserializer::from_str(text) {
        let object = Option::<DynamicObject>::deserialize(document).context("a policy of this program")?;
        let Some(object) = object else { continue };
        let types = object.types.clone().context("a policy without a kind")?;
        let kind = GroupVersionKind::try_from(&types).context("a policy's kind")?;
        let Ok((resource, capabilities)) = pinned_kind(&site.client, &kind).await else {
            eprintln!("    {} {}: not served here, left out", types.kind, object.name_any());
            continue;
        };
        if capabilities.scope != Scope::Cluster {
            bail!("policy {} is not cluster-scoped", object.name_any());
        }
        let api: Api<DynamicObject> = Api::all_with(site.client.clone(), &resource);
        let (name, what) = (object.name_any(), format!("{} {}", types.kind, object.name_any()));
        let there = api.get_opt(&name).await.map_err(|e| site.failure(&what, e)).or_exit()?;
        let path = format!("{}/{}/{}/{name}", resource.group, resource.version, resource.kind);
        note(state, MadeKind::Policy, &path, there.is_some()).await?;
        api.patch(&name, &params(), &Patch::Apply(&object))
            .await
            .map_err(|e| site.failure(&what, e))
            .or_exit()?;
    }
    Ok(())
}

/// Waits until the new kinds can be listed.
async fn served(site: &Site) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + SERVED;
    loop {
        let one = kube::api::ListParams::default().limit(1);
        let blades = site.all::<whetstone_api::Blade>().list(&one).await.err();
        let tranches = site.all::<whetstone_api::Tranche>().list(&one).await.err();
        let burnins = site.all::<whetstone_api::BurnIn>().list(&one).await.err();
        match blades.or(tranches).or(burnins) {
            None => return Ok(()),
            Some(error) if tokio::time::Instant::now() > until => {
                return Err(site.failure("Whetstone's kinds", error)).or_exit();
            }
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// The ops credentials as a Secret, so that a kubeconfig is all that `whet` and `kubectl whet` need.
pub async fn secret(site: &Site, state: &mut State, dir: &Path) -> anyhow::Result<()> {
    let mut data = BTreeMap::new();
    for name in ["ca.crt", "tls.crt", "tls.key", "url"] {
        let path = dir.join(FOLDER).join(name);
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        data.insert(name.to_owned(), ByteString(bytes));
    }
    let api = site.namespaced::<Secret>(NAMESPACE);
    let what = format!("secret {SECRET}");
    let there = api.get_opt(SECRET).await.map_err(|e| site.failure(&what, e)).or_exit()?;
    note(state, MadeKind::Secret, SECRET, there.is_some()).await?;
    let object = Secret {
        metadata: kube::api::ObjectMeta { name: Some(SECRET.into()), ..Default::default() },
        type_: Some("Opaque".into()),
        data: Some(data),
        ..Secret::default()
    };
    api.patch(SECRET, &params(), &Patch::Apply(&object))
        .await
        .map_err(|e| site.failure(&what, e))
        .or_exit()?;
    Ok(())
}

/// A node for each blade: where a kubelet has registered it, its label; else a hollow one.
///
/// A hollow node is an object without a machine: nothing ever runs there and its Ready is never true. It shows what the
/// operator does to nodes (taint, cordon, note) without the 80 MiB that a kubelet takes. It is made as a kubelet of a
/// site registers: with the taint.
pub async fn nodes(site: &Site, state: &mut State) -> anyhow::Result<()> {
    let api: Api<Node> = site.all();
    for blade in state.blades.clone() {
        let what = format!("node {}", blade.name);
        let labels = json!({BLADE: blade.name, "kubernetes.io/hostname": blade.name});
        if blade.kubelet {
            let patch = json!({"metadata": {"labels": labels}});
            let done = api.patch(&blade.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            done.map_err(|e| site.failure(&what, e)).or_exit()?;
            continue;
        }
        note(state, MadeKind::Node, &blade.name, false).await?;
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": blade.name, "labels": labels, "annotations": {"whetstone.dev/hollow": "true"}},
            "spec": {"taints": [{"key": TAINT, "value": UNPROVEN, "effect": "NoSchedule"}]},
        }))?;
        api.create(&PostParams::default(), &node).await.map_err(|e| site.failure(&what, e)).or_exit()?;
    }
    Ok(())
}
