//! The body of a response whose handler runs in a task of its own.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::mpsc;

pin_project! {
    /// The body of a response that came through a layer which stores responses: the handler's own, a
    /// stored one, or one that is being stored while it is sent.
    pub struct ResponseBody<R>
    where
        R: Body,
    {
        #[pin]
        state: State<R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<R>
    where
        R: Body,
    {
        Inner { #[pin] body: R },
        Whole { bytes: Option<Bytes> },
        Rest { body: Pin<Box<R>> },
        Live { pieces: mpsc::UnboundedReceiver<Piece<R>>, left: SizeHint },
        Ended,
    }
}

/// What the task that stores a body passes on to who asked for it.
pub(crate) enum Piece<R: Body> {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body has come to its end.
    End,
    Failed(R::Error),
    /// It is not stored after all; here is what has not been read of it.
    Rest(Pin<Box<R>>),
}

/// Why a body could not be read to its end: the handler's body failed, or the task that read it has
/// ended before it.
///
/// The [source](std::error::Error::source) is the error of the handler's body.
#[derive(Debug)]
pub struct BodyError {
    source: Option<BoxError>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.source {
            Some(_) => "the body failed",
            None => "the body ended before it was complete",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

fn failed(error: impl Into<BoxError>) -> BodyError {
    BodyError { source: Some(error.into()) }
}

impl<R: Body> ResponseBody<R> {
    pub(crate) fn inner(body: R) -> Self {
        Self { state: State::Inner { body } }
    }

    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self { state: State::Whole { bytes: Some(bytes) } }
    }

    pub(crate) fn live(pieces: mpsc::UnboundedReceiver<Piece<R>>, size: SizeHint) -> Self {
        Self { state: State::Live { pieces, left: size } }
    }
}

impl<R> Body for ResponseBody<R>
where
    R: Body,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut state = self.project().state;
        loop {
            let (next, frame) = match state.as_mut().project() {
                StateProj::Inner { body } => {
                    let frame = ready!(body.poll_frame(cx));
                    return Poll::Ready(frame.map(outer_frame));
                }
                StateProj::Rest { body } => {
                    let frame = ready!(body.as_mut().poll_frame(cx));
                    return Poll::Ready(frame.map(outer_frame));
                }
                StateProj::Whole { bytes } => {
                    let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                    return Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))));
                }
                StateProj::Live { pieces, left } => match ready!(pieces.poll_recv(cx)) {
                    Some(Piece::Data(bytes)) => {
                        *left = less(left, bytes.len() as u64);
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                    Some(Piece::Trailers(trailers)) => {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Some(Piece::Rest(body)) => (State::Rest { body }, None),
                    Some(Piece::End) => (State::Ended, Some(None)),
                    Some(Piece::Failed(error)) => (State::Ended, Some(Some(Err(failed(error))))),
                    None => (State::Ended, Some(Some(Err(BodyError { source: None })))),
                },
                StateProj::Ended => return Poll::Ready(None),
            };
            state.set(next);
            if let Some(frame) = frame {
                return Poll::Ready(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Inner { body } => body.is_end_stream(),
            State::Rest { body } => body.is_end_stream(),
            State::Whole { bytes } => bytes.as_ref().is_none_or(Bytes::is_empty),
            State::Live { .. } => false,
            State::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Inner { body } => body.size_hint(),
            State::Rest { body } => body.size_hint(),
            State::Whole { bytes } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            State::Live { left, .. } => *left,
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

impl<R: Body> fmt::Debug for ResponseBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

fn outer_frame<D: Buf, E: Into<BoxError>>(
    frame: Result<Frame<D>, E>,
) -> Result<Frame<Bytes>, BodyError> {
    frame.map(|frame| frame.map_data(into_bytes)).map_err(failed)
}

/// Without copying, if it is `Bytes` already.
pub(crate) fn into_bytes(mut data: impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

fn less(hint: &SizeHint, sent: u64) -> SizeHint {
    let mut left = SizeHint::new();
    left.set_lower(hint.lower().saturating_sub(sent));
    if let Some(upper) = hint.upper() {
        left.set_upper(upper.saturating_sub(sent));
    }
    left
}
