//! A cluster that is somebody else's: what in it would be in the way of a site, looked at before anything is made there; and what
//! came since into what the site made, looked at before that goes.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::discovery::{ApiGroup, Discovery, Scope, verbs};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use whetstone_api::{Blade, BurnIn, Tranche};

use super::objects::{self, Known};
use super::silicon::Silicon;
use crate::input_error;
use crate::site::access::Site;
use crate::site::failure::OrExit as _;
use crate::site::ops::{NAMESPACE, SECRET};

/// Refuses a cluster in which a site would take, change or lose something that is not its own.
pub async fn refuse(site: &Site) -> anyhow::Result<()> {
    obstacle(site).await?.map_or(Ok(()), |what| refused(site, &what))
}

/// The same for the names of its blades, which only the silicon says.
pub async fn refuse_names(site: &Site, blades: &[Silicon]) -> anyhow::Result<()> {
    let nodes = site.all::<Node>().list_metadata(&ListParams::default()).await;
    let nodes = nodes.map_err(|e| site.failure("nodes", e)).or_exit()?;
    let taken = |node: &&PartialObjectMeta<Node>| blades.iter().any(|blade| blade.name == node.name_any());
    nodes.items.iter().find(taken).map_or(Ok(()), |node| {
        let name = node.name_any();
        refused(site, &format!("node {name} is there already, and a blade of this site has its name"))
    })
}

fn refused(site: &Site, what: &str) -> anyhow::Result<()> {
    Err(input_error(format!("{}: {what}; nothing was changed there", site.server)))
}

async fn obstacle(site: &Site) -> anyhow::Result<Option<String>> {
    if let Some(what) = operator(site).await? {
        return Ok(Some(what));
    }
    let namespace = site.all::<Namespace>().get_opt(NAMESPACE).await;
    let namespace = namespace.map_err(|e| site.failure("namespace", e)).or_exit()?;
    if namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Ok(Some(format!("namespace {NAMESPACE} is being deleted (wait until it is gone)")));
    }
    let secret = site.namespaced::<Secret>(NAMESPACE).get_metadata_opt(SECRET).await;
    if secret.map_err(|e| site.failure("secret", e)).or_exit()?.is_some() {
        return Ok(Some(format!("secret {NAMESPACE}/{SECRET} is there already, and not this site's")));
    }
    for known in objects::known(site).await? {
        if differs(site, &known).await? {
            let (kind, name) = (&known.kind, known.object.name_any());
            return Ok(Some(format!("{kind} {name} is there already, of another version of Whetstone")));
        }
    }
    whetstones(site).await
}

/// An operator's lease, whoever has it and wherever: two operators would undo each other's work.
async fn operator(site: &Site) -> anyhow::Result<Option<String>> {
    let named = ListParams::default().fields(&format!("metadata.name={}", objects::LEASE));
    let leases = site.all::<Lease>().list(&named).await;
    let leases = leases.map_err(|e| site.failure("leases", e)).or_exit()?;
    let Some(lease) = leases.items.first() else { return Ok(None) };
    let place = lease.namespace().unwrap_or_default();
    let name = objects::LEASE;
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    Ok(Some(match holder.filter(|holder| !holder.is_empty()) {
        Some(holder) => {
            format!("an operator of Whetstone is there already (lease {place}/{name} of {holder})")
        }
        None => format!(
            "an operator of Whetstone was there (lease {place}/{name}; delete it if none is to come back)"
        ),
    }))
}

/// Whether an object that a site needs is there and says something else. The apiserver fills in what a manifest leaves
/// out, so it is asked what would stand there if ours replaced it.
async fn differs(site: &Site, known: &Known) -> anyhow::Result<bool> {
    let (name, what) = (known.object.name_any(), format!("{} {}", known.kind, known.object.name_any()));
    let there = known.api.get_opt(&name).await.map_err(|e| site.failure(&what, e)).or_exit()?;
    let Some(there) = there else { return Ok(false) };
    let mut ours = known.object.clone();
    ours.metadata.resource_version.clone_from(&there.metadata.resource_version);
    let only_asked = PostParams { dry_run: true, ..PostParams::default() };
    match known.api.replace(&name, &only_asked, &ours).await {
        Ok(replaced) => Ok(spec(&replaced) != spec(&there)),
        // It may not become ours at all.
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(true),
        Err(error) => Err(site.failure(&what, error)).or_exit(),
    }
}

fn spec(object: &DynamicObject) -> Option<&Value> {
    object.data.get("spec")
}

/// Objects of Whetstone: the site's operator would take them for its own.
async fn whetstones(site: &Site) -> anyhow::Result<Option<String>> {
    let tranche = first::<Tranche>(site, "tranche").await?;
    let blade = first::<Blade>(site, "blade").await?;
    let burnin = first::<BurnIn>(site, "burnin").await?;
    Ok(tranche.or(blade).or(burnin).map(|what| format!("{what} is there already, and not this site's")))
}

/// An object of our kinds: they would go with the kinds.
pub async fn of_our_kinds(site: &Site) -> anyhow::Result<Option<String>> {
    whetstones(site).await
}

/// Something in our namespace that is not this site's: it would go with the namespace.
pub async fn in_our_namespace(site: &Site, id: &str) -> anyhow::Result<Option<String>> {
    let failure = |e| site.failure(&format!("namespace {NAMESPACE}"), e);
    let kinds = Discovery::new(site.client.clone()).run().await.map_err(failure).or_exit()?;
    for (kind, can) in kinds.groups().flat_map(ApiGroup::recommended_resources) {
        let is_looked_at = can.scope == Scope::Namespaced && can.supports_operation(verbs::LIST);
        if !is_looked_at || kind.kind == "Event" {
            continue;
        }
        let api: Api<DynamicObject> = Api::namespaced_with(site.client.clone(), NAMESPACE, &kind);
        let all = api.list_metadata(&ListParams::default()).await.map_err(failure).or_exit()?;
        let theirs = |there: &&PartialObjectMeta<DynamicObject>| {
            !every_namespace_has(&kind.kind, &there.name_any())
                && there.labels().get(objects::SITE).is_none_or(|label| label != id)
        };
        if let Some(there) = all.items.iter().find(theirs) {
            return Ok(Some(format!("{} {}", kind.kind.to_lowercase(), there.name_any())));
        }
    }
    Ok(None)
}

/// What the control plane makes in each namespace.
fn every_namespace_has(kind: &str, name: &str) -> bool {
    matches!((kind, name), ("ServiceAccount", "default") | ("ConfigMap", "kube-root-ca.crt"))
}

/// Kind and name of one, if there is any.
async fn first<K>(site: &Site, word: &str) -> anyhow::Result<Option<String>>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match site.all::<K>().list_metadata(&ListParams::default().limit(1)).await {
        Ok(list) => Ok(list.items.first().map(|object| format!("{word} {}", object.name_any()))),
        // The kind is not known there.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(site.failure(word, error)).or_exit(),
    }
}
