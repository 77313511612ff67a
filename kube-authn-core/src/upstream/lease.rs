//! What a request holds of a connection until its answer has ended.

use std::task::Context;

use super::{http1, http2};

/// A share of a connection: a stream of h2, a whole connection of HTTP/1.1. Dropping it gives the share up.
pub(crate) enum Lease {
    Http2(http2::Slot),
    Http1(http1::Loan),
    /// A connection of its own, which nobody uses afterwards.
    Own,
}

impl Lease {
    /// Moves bytes of the answer, where no task of the connection's own does.
    pub(crate) fn drive(&mut self, context: &mut Context<'_>) {
        if let Self::Http1(loan) = self {
            loan.drive(context);
        }
    }

    /// The answer has ended, `whole` or broken off.
    pub(crate) fn end(self, whole: bool) {
        match self {
            Self::Http1(loan) if whole => loan.give_back(),
            // Closes the connection: the rest of the answer is still on its way.
            Self::Http1(loan) => drop(loan),
            Self::Http2(slot) => drop(slot),
            Self::Own => {}
        }
    }
}
