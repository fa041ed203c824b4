//! One node whose handler notes what happens, does what the request says, and whose answers are
//! noted as well.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Request, Response},
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tower_keep::{
    RequestHead, Storage,
    idempotency::{Idempotency, Outcome, Policy},
};

use crate::{
    history::{Answer, Fate, Id, Log, Step},
    till::{Till, code, is_replay},
};

/// What a handler does if it gets to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    Receipt,
    /// A receipt that comes in pieces.
    Stream,
    Seal,
    /// 429: nothing was done.
    Busy,
    /// 500.
    Fail,
    Panic,
    /// It returns before its commit point, if there is one.
    Early,
    /// It never comes to an end.
    Hang,
}

impl Act {
    pub(crate) const ALL: [Self; 8] = [
        Self::Receipt,
        Self::Stream,
        Self::Seal,
        Self::Busy,
        Self::Fail,
        Self::Panic,
        Self::Early,
        Self::Hang,
    ];

    /// Whose answer is kept.
    pub(crate) const KEPT: [Self; 3] = [Self::Receipt, Self::Stream, Self::Fail];
    /// All that come to an end, and more that keep their answer than others.
    pub(crate) const MIXED: [Self; 9] = [
        Self::Receipt,
        Self::Receipt,
        Self::Stream,
        Self::Seal,
        Self::Busy,
        Self::Busy,
        Self::Fail,
        Self::Panic,
        Self::Early,
    ];

    fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|act| format!("{act:?}") == name).unwrap()
    }
}

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: Id,
    pub(crate) key: String,
    pub(crate) payload: u8,
    pub(crate) act: Act,
    /// How long the handler takes.
    pub(crate) work: Duration,
    /// When the client goes away.
    pub(crate) patience: Duration,
}

impl Order {
    pub(crate) fn new(id: Id, key: &str) -> Self {
        let (work, patience) = (Duration::ZERO, Duration::from_secs(3_600));
        Self { id, key: key.to_owned(), payload: 0, act: Act::Receipt, work, patience }
    }

    pub(crate) fn doing(mut self, act: Act, work: Duration) -> Self {
        (self.act, self.work) = (act, work);
        self
    }

    fn request(&self) -> Request<Body> {
        // None of these header fields belongs to what makes two requests the same.
        Request::post("/charge")
            .header("idempotency-key", &self.key)
            .header("x-id", self.id)
            .header("x-act", format!("{:?}", self.act))
            .header("x-work", self.work.as_millis() as u64)
            .body(Body::from(vec![self.payload]))
            .unwrap()
    }
}

/// A node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) till: Till,
    pub(crate) log: Log,
}

impl Desk {
    pub(crate) fn new(
        storage: impl Storage,
        policy: Policy,
        commit_point: bool,
        log: &Log,
    ) -> Self {
        let notes = Notes { log: log.clone(), commit_point, on_step: None };
        Self::with_notes(storage, policy, notes)
    }

    pub(crate) fn with_notes(storage: impl Storage, policy: Policy, notes: Notes) -> Self {
        let policy = match notes.commit_point {
            true => policy.with_commit_point(),
            false => policy,
        };
        let log = notes.log.clone();
        let till = Till::new(storage, policy, move |_, request| notes.clone().handle(request));
        Self { till, log }
    }

    /// Sends a request, and returns what it was told. `None` if the client has gone.
    pub(crate) async fn ask(&self, order: &Order) -> Option<Answer> {
        self.log.note(order.id, Step::Sent { payload: order.payload });
        let response = timeout(order.patience, self.till.send(order.request())).await.ok()?;
        let answer = answer(&response);
        self.log.note(order.id, Step::Answered(answer.clone()));
        Some(answer)
    }
}

pub(crate) type OnStep = Arc<dyn Fn(&Step) + Send + Sync>;

/// What a handler does and notes.
#[derive(Clone)]
pub(crate) struct Notes {
    pub(crate) log: Log,
    pub(crate) commit_point: bool,
    /// Is told of each step of a handler after it was noted.
    pub(crate) on_step: Option<OnStep>,
}

impl Notes {
    fn note(&self, id: Id, step: Step) {
        self.log.note(id, step.clone());
        if let Some(on_step) = &self.on_step {
            on_step(&step);
        }
    }

    async fn handle(self, request: Request<Body>) -> Response<Body> {
        let id = field(&request, "x-id").parse::<Id>().unwrap();
        let act = Act::named(field(&request, "x-act"));
        let work = Duration::from_millis(field(&request, "x-work").parse().unwrap());
        let attempt = Idempotency::of(RequestHead::new(&request)).unwrap();
        self.note(id, Step::Entered { attempt: attempt.attempt(), fence: attempt.fence() });
        if act == Act::Early {
            self.note(id, Step::Left(if self.commit_point { Fate::Freed } else { kept(id) }));
            return receipt(id);
        }
        if self.commit_point {
            sleep(work / 2).await;
            self.note(id, Step::Begins);
            let begun = attempt.begin().await;
            self.note(id, Step::Begun { ok: begun.is_ok() });
            if let Err(error) = begun {
                self.note(id, Step::Left(Fate::Freed));
                return error.to_response().map(Body::from);
            }
        }
        sleep(work).await;
        let status = |status: u16| {
            Response::builder().status(status).body(Body::from(format!("of {id}"))).unwrap()
        };
        match act {
            Act::Receipt | Act::Early => {
                self.note(id, Step::Left(kept(id)));
                receipt(id)
            }
            Act::Stream => {
                self.note(id, Step::Left(kept(id)));
                let whole = format!("of {id}");
                let pieces: Vec<String> = whole.chars().map(String::from).collect();
                let body = stream::unfold(pieces.into_iter(), |mut pieces| async {
                    sleep(Duration::from_millis(3)).await;
                    let piece = pieces.next()?;
                    Some((Ok::<_, std::io::Error>(Bytes::from(piece)), pieces))
                });
                Response::builder().status(201).body(Body::from_stream(body)).unwrap()
            }
            Act::Seal => {
                attempt.seal();
                self.note(id, Step::Left(Fate::Sealed));
                receipt(id)
            }
            Act::Busy => {
                // After the commit point it is an answer like all others.
                let begun = Fate::Kept(format!("429 of {id}"));
                self.note(id, Step::Left(if self.commit_point { begun } else { Fate::Freed }));
                status(429)
            }
            Act::Fail => {
                self.note(id, Step::Left(Fate::Kept(format!("500 of {id}"))));
                status(500)
            }
            Act::Panic => {
                self.note(id, Step::Left(Fate::Kept("500 handler-failed".to_owned())));
                std::panic::resume_unwind(Box::new("on purpose, and without a message"));
            }
            Act::Hang => std::future::pending().await,
        }
    }
}

fn field<'a>(request: &'a Request<Body>, name: &str) -> &'a str {
    request.headers()[name].to_str().unwrap()
}

fn kept(id: Id) -> Fate {
    Fate::Kept(format!("201 of {id}"))
}

fn receipt(id: Id) -> Response<Body> {
    Response::builder().status(201).body(Body::from(format!("of {id}"))).unwrap()
}

fn answer(response: &Response<Bytes>) -> Answer {
    let is_problem = response
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind == "application/problem+json");
    let text = match is_problem {
        true => code(response),
        false => String::from_utf8(response.body().to_vec()).unwrap(),
    };
    let whole = format!("{} {text}", response.status().as_u16());
    match (is_replay(response), response.extensions().get::<Outcome>(), text.as_str()) {
        (true, ..) => Answer::Replay(whole),
        (_, Some(Outcome::Executed), _) | (.., "handler-failed") => Answer::Own(whole),
        (.., "in-flight") => Answer::InFlight,
        (.., "response-not-retained") => Answer::Sealed,
        (.., "outcome-unknown") => Answer::Unknown,
        (.., "mismatch") => Answer::Mismatch,
        (.., "unavailable" | "busy") => Answer::Refused,
        _ => panic!("{response:?}"),
    }
}
