//! What is to be stored of an answer, and why it is not.

use std::{hash::Hasher, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::{Client, random};
use crate::{
    cache::{
        Policy,
        control::{self, Freshness, Storable},
        entry::{Stored, StoredResponse},
        tags::{TagError, TagList, stored as tag},
    },
    storage::Tag,
};

/// What is to be stored, but for the body.
pub(super) struct Draft {
    pub(super) storable: Storable,
    pub(super) own: TagList,
    pub(super) groups: Vec<String>,
    pub(super) headers: HeaderMap,
    pub(super) length: Option<u64>,
}

impl Draft {
    pub(super) fn tags(&self, client: &Client) -> Vec<Tag> {
        let own = self.own.iter().map(tag::own);
        let groups = self.groups.iter().map(|group| tag::group(&client.host, group.as_bytes()));
        client.implicit.iter().cloned().chain(own).chain(groups).collect()
    }

    pub(super) fn response(
        &self,
        status: StatusCode,
        body: Bytes,
        fill_time: Duration,
        policy: &Policy,
    ) -> Arc<Stored> {
        let mut headers = self.headers.clone();
        let wanted = policy.etag && status == StatusCode::OK;
        if wanted && !headers.contains_key(header::ETAG) {
            headers.insert(header::ETAG, etag(&body));
        }
        Arc::new(Stored::Response(StoredResponse {
            status,
            headers,
            freshness: self.storable.freshness,
            fill_time,
            tags: self.own.clone(),
            body,
        }))
    }
}

/// Why an answer is not stored.
pub(super) struct NotStored {
    pub(super) reason: &'static str,
    /// The next answer will not be stored either, most likely.
    pub(super) is_remembered: bool,
}

/// A layer inside has decided, by a policy that knows more of the route.
pub(super) const INNER_CACHE: NotStored = NotStored { reason: "inner-cache", is_remembered: true };

pub(super) const TOO_LARGE: NotStored = NotStored { reason: "too-large", is_remembered: true };

impl From<control::Refusal> for NotStored {
    fn from(refusal: control::Refusal) -> Self {
        Self { reason: refusal.as_str(), is_remembered: refusal.is_remembered() }
    }
}

impl From<TagError> for NotStored {
    fn from(error: TagError) -> Self {
        event!(debug, reason = error.reason(), "an answer was not stored because of its tags");
        Self { reason: error.reason(), is_remembered: true }
    }
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Shortens a life by a random part of up to this share.
pub(in crate::cache) fn jittered(mut freshness: Freshness, share: f64) -> Freshness {
    if share > 0.0 {
        // Less than all of it, so that this cannot overflow.
        let cut = freshness.lifetime.mul_f64(share * random());
        freshness.lifetime = freshness.lifetime.saturating_sub(cut);
    }
    freshness
}

/// A strong one, by the content. Of ours, so that it is told from the handler's.
fn etag(body: &[u8]) -> HeaderValue {
    let mut hasher = SipHasher13::new();
    hasher.write(body);
    let hash = hasher.finish128().as_u128();
    HeaderValue::from_str(&format!("{OWN_ETAG}{hash:032x}\"")).expect("letters and digits")
}

const OWN_ETAG: &str = "\"tk-";

pub(super) fn is_own(etag: &HeaderValue) -> bool {
    etag.as_bytes().starts_with(OWN_ETAG.as_bytes())
}
