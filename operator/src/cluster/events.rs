//! Kubernetes Events: what `kubectl describe blade` shows at its end. A courtesy: the history is in the store, so in a storm events
//! are left out rather than hold anything up.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::precedence::Precedence;
use super::{Fence, REQUEST_LIMIT};

/// Events on their way at once.
const AT_ONCE: usize = 8;
/// Events that wait; further ones are left out.
const WAITING: usize = 1_000;
/// Longest note that the apiserver takes is 1024 bytes.
const NOTE: usize = 900;

/// Publishes events; cheap to clone.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    fence: Fence,
    room: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    precedence: Precedence,
    tasks: TaskTracker,
}

impl Events {
    pub fn new(
        client: Client,
        fence: Fence,
        identity: &str,
        precedence: Precedence,
        tasks: TaskTracker,
    ) -> Events {
        let reporter =
            Reporter { controller: whetstone_api::FIELD_MANAGER.into(), instance: Some(identity.into()) };
        let (room, waiting) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(WAITING)));
        Events { recorder: Recorder::new(client, reporter), fence, room, waiting, precedence, tasks }
    }

    /// Says that `object` came to `reason` (CamelCase), in the background.
    pub fn say(&self, object: ObjectReference, warning: bool, reason: &str, note: &str) {
        let Ok(place) = self.waiting.clone().try_acquire_owned() else { return };
        let note = note.get(..note.floor_char_boundary(NOTE)).unwrap_or_default();
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Transition".to_owned(),
            secondary: None,
        };
        let Events { recorder, fence, room, precedence, .. } = self.clone();
        self.tasks.spawn(async move {
            let _place = place;
            let _turn = room.acquire().await;
            precedence.after_nodes().await;
            let publishing = recorder.publish(&event, &object);
            if let Err(error) = fence.within("publish event", REQUEST_LIMIT, publishing).await {
                debug!(%error, "an event could not be published");
            }
        });
    }
}
