//! What a site has in its cluster before any blade comes: kinds, admission policies, credentials, nodes.
//!
//! All of it is made, never changed, and carries the site's id: what has no such label is somebody else's.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Scope, pinned_kind};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use serde_json::{Value, json};
use whetstone_api::node::{BLADE, TAINT, UNPROVEN};

use super::state::{Made, MadeKind, State};
use crate::site::access::Site;
use crate::site::failure::OrExit as _;
use crate::site::ops::{FOLDER, NAMESPACE, SECRET};

include!(concat!(env!("OUT_DIR"), "/policies.rs"));

/// Label of all that a site makes in a cluster: the site's id.
pub const SITE: &str = "whetstone.dev/site";
/// The operator's lease, as the operator calls it.
pub const LEASE: &str = "whetstone-operator";
/// Until the apiserver serves a new kind.
const SERVED: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Makes one object, with the site's label. Recorded before it is there, so that a crash leaves none that nobody knows of;
/// what was there already stays as it is, and `down` sees by its label that it is not ours.
pub async fn make<K>(
    site: &Site,
    state: &mut State,
    made: (MadeKind, &str),
    api: &Api<K>,
    object: &K,
) -> anyhow::Result<()>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let (kind, name) = made;
    let mut object = object.clone();
    object.labels_mut().insert(SITE.to_owned(), state.id.clone());
    state.change(|state| state.made.push(Made { kind, name: name.to_owned() }))?;
    let what = format!("{} {}", kind.word(), object.name_any());
    api.create(&PostParams::default(), &object).await.map_err(|e| site.failure(&what, e)).or_exit()?;
    Ok(())
}

/// Kinds, namespace and policies; in a cluster that is not ours also the operator's lease.
pub async fn prepare(site: &Site, state: &mut State) -> anyhow::Result<()> {
    let ours = state.whet_local.is_some();
    for known in known(site).await? {
        let name = known.object.name_any();
        let what = format!("{} {name}", known.kind);
        // Of the same content: see `others`.
        if known.api.get_metadata_opt(&name).await.map_err(|e| site.failure(&what, e)).or_exit()?.is_some() {
            continue;
        }
        let mut object = known.object;
        if known.made == MadeKind::Policy && !ours {
            confine(&mut object, &state.id)?;
        }
        make(site, state, (known.made, &known.path), &known.api, &object).await?;
    }
    let namespaces: Api<Namespace> = site.all();
    let there = namespaces.get_metadata_opt(NAMESPACE).await;
    if there.map_err(|e| site.failure("namespace", e)).or_exit()?.is_none() {
        let object = Namespace { metadata: named(NAMESPACE), ..Namespace::default() };
        make(site, state, (MadeKind::Namespace, NAMESPACE), &namespaces, &object).await?;
    }
    if !ours {
        // Who makes the lease has the cluster: an operator that comes later, or another site, finds it taken.
        let object = Lease { metadata: named(LEASE), spec: None };
        make(site, state, (MadeKind::Lease, LEASE), &site.namespaced::<Lease>(NAMESPACE), &object).await?;
    }
    served(site).await
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// An object that every site has, with the API where it is.
pub struct Known {
    pub made: MadeKind,
    /// As it is recorded: its name, or `GROUP/VERSION/KIND/NAME`.
    pub path: String,
    pub kind: String,
    pub api: Api<DynamicObject>,
    pub object: DynamicObject,
}

/// Custom resource definitions and admission policies. A kind of policy that this Kubernetes does not serve is left out:
/// the taint is the operator's anyway, the policies close the window before it.
pub async fn known(site: &Site) -> anyhow::Result<Vec<Known>> {
    let mut all = Vec::new();
    let definitions = ApiResource::erase::<CustomResourceDefinition>(&());
    for manifest in whetstone_api::manifests()? {
        all.push(Known {
            made: MadeKind::Crd,
            path: manifest.crd.name_any(),
            kind: definitions.kind.clone(),
            api: Api::all_with(site.client.clone(), &definitions),
            object: serde_json::from_value(serde_json::to_value(&manifest.crd)?)?,
        });
    }
    let documents = POLICIES.iter().flat_map(|text| serde_norway::Deserializer::from_str(text));
    for document in documents {
        let object = Option::<DynamicObject>::deserialize(document).context("a policy of this program")?;
        let Some(object) = object else { continue };
        let types = object.types.clone().context("a policy without a kind")?;
        let kind = GroupVersionKind::try_from(&types).context("a policy's kind")?;
        let Ok((resource, capabilities)) = pinned_kind(&site.client, &kind).await else { continue };
        if capabilities.scope != Scope::Cluster {
            bail!("policy {} is not cluster-scoped", object.name_any());
        }
        let name = object.name_any();
        all.push(Known {
            made: MadeKind::Policy,
            path: format!("{}/{}/{}/{name}", resource.group, resource.version, resource.kind),
            kind: resource.kind.clone(),
            api: Api::all_with(site.client.clone(), &resource),
            object,
        });
    }
    Ok(all)
}

/// Lets a policy look at this site's nodes alone: the others are not ours to withhold.
fn confine(object: &mut DynamicObject, id: &str) -> anyhow::Result<()> {
    let Some(spec) = object.data.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    // A binding has no conditions.
    if !spec.contains_key("matchConstraints") {
        return Ok(());
    }
    let conditions = spec.entry("matchConditions").or_insert_with(|| json!([]));
    let conditions = conditions.as_array_mut().context("a policy's conditions")?;
    let expression =
        format!("has(object.metadata.labels) && object.metadata.labels[?{SITE:?}].orValue(\"\") == {id:?}");
    conditions.push(json!({"name": "is-of-this-site", "expression": expression}));
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
    let object = Secret {
        metadata: named(SECRET),
        type_: Some("Opaque".into()),
        data: Some(data),
        ..Secret::default()
    };
    make(site, state, (MadeKind::Secret, SECRET), &site.namespaced::<Secret>(NAMESPACE), &object).await
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
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": blade.name, "labels": labels, "annotations": {"whetstone.dev/hollow": "true"}},
            "spec": {"taints": [{"key": TAINT, "value": UNPROVEN, "effect": "NoSchedule"}]},
        }))?;
        make(site, state, (MadeKind::Node, &blade.name), &api, &node).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_policy_has_a_condition_more_and_a_binding_stays_as_it_is() {
        let mut policies = 0;
        for document in POLICIES.iter().flat_map(|text| serde_norway::Deserializer::from_str(text)) {
            let before = DynamicObject::deserialize(document).unwrap();
            let mut after = before.clone();
            confine(&mut after, "7f").unwrap();
            let count = |object: &DynamicObject| {
                object.data["spec"]["matchConditions"].as_array().map_or(0, Vec::len)
            };
            if before.types.as_ref().unwrap().kind.ends_with("Binding") {
                assert_eq!(after.data, before.data);
            } else {
                policies += 1;
                assert_eq!(count(&after), count(&before) + 1);
                let text = after.data["spec"]["matchConditions"].to_string();
                assert!(text.contains("whetstone.dev/site") && text.contains("7f"), "{text}");
            }
        }
        assert!(policies >= 2, "{policies}");
    }
}
