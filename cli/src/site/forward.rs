//! A port of the operator's pods, forwarded through the apiserver as `kubectl port-forward` does it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tokio::net::TcpListener;

use super::access::Site;
use super::failure::Failure;
use super::ops::NAMESPACE;
use crate::complain;

const LABEL: &str = "app.kubernetes.io/name=whetstone-operator";
/// Name of the port in the pod.
const PORT_NAME: &str = "intake";

/// A port of this machine that leads to the operator while the runtime goes on.
pub struct Forward {
    pub address: SocketAddr,
    /// Pods behind it, used in turn.
    pub pods: usize,
}

pub async fn to_operator(site: &Site, port: u16) -> Result<Forward, Failure> {
    let api: Api<Pod> = site.namespaced(NAMESPACE);
    let params = ListParams::default().labels(LABEL).limit(50);
    let found = api.list(&params).await.map_err(|e| site.failure("the operator's pods", e))?;
    let pods: Arc<[(String, u16)]> = found
        .items
        .iter()
        .filter(|pod| is_running(pod))
        .filter_map(|pod| Some((pod.metadata.name.clone()?, pod_port(pod).unwrap_or(port))))
        .collect();
    if pods.is_empty() {
        let what = format!("no pod with label {LABEL} runs in namespace {NAMESPACE}");
        return Err(Failure::OperatorAway { url: site.server.clone(), what });
    }
    let local = |e: std::io::Error| Failure::OperatorAway { url: site.server.clone(), what: e.to_string() };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(local)?;
    let address = listener.local_addr().map_err(local)?;
    let count = pods.len();
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut here, _)) = listener.accept().await {
            let (api, pods, this) = (api.clone(), Arc::clone(&pods), turn % count);
            turn += 1;
            tokio::spawn(async move {
                let Some((pod, port)) = pods.get(this) else { return };
                match api.portforward(pod, &[*port]).await {
                    Ok(mut forwarder) => {
                        if let Some(mut there) = forwarder.take_stream(*port) {
                            // Ends with either side; the caller sees it as the end of its connection.
                            let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                        }
                    }
                    Err(error) => complain(format_args!("pod {pod}: its port cannot be forwarded: {error}")),
                }
            });
        }
    });
    Ok(Forward { address, pods: count })
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// The port as the pod calls it: a service may have another number for it.
fn pod_port(pod: &Pod) -> Option<u16> {
    let containers = &pod.spec.as_ref()?.containers;
    let mut ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    u16::try_from(ports.find(|port| port.name.as_deref() == Some(PORT_NAME))?.container_port).ok()
}
