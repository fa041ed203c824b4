//! Reading a body, for who asked and for the storage.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;

use super::live::into_bytes;

/// What has been read of a body.
#[derive(Default)]
pub(crate) struct Chunks {
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) length: usize,
}

/// How reading a body has ended.
pub(crate) enum End<E> {
    Whole,
    Trailers(HeaderMap),
    TooLong,
    Failed(E),
}

impl Chunks {
    /// Reads on. Dropped, it has lost nothing.
    pub(crate) async fn read<R: Body>(
        &mut self,
        body: &mut Pin<Box<R>>,
        max: usize,
        mut pass_on: impl FnMut(&Bytes),
    ) -> End<R::Error> {
        loop {
            let frame = match poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                None => return End::Whole,
                Some(Err(error)) => return End::Failed(error),
                Some(Ok(frame)) => frame,
            };
            let data = match frame.into_data() {
                Ok(data) => into_bytes(data),
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => return End::Trailers(trailers),
                    Err(_) => continue,
                },
            };
            pass_on(&data);
            self.length += data.len();
            self.chunks.push(data);
            if self.length > max {
                return End::TooLong;
            }
        }
    }

    /// All of it, without a copy if it came in one.
    pub(crate) fn join(&mut self) -> Bytes {
        if let [whole] = &self.chunks[..] {
            return whole.clone();
        }
        let mut whole = BytesMut::with_capacity(self.length);
        self.chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
        whole.freeze()
    }
}

/// What the future has to say at its first poll, if it has.
pub(crate) async fn now_or_later<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx: &mut Context<'_>| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}
