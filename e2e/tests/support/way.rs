//! A port of its own for a server, whose way there can be broken.

use std::time::Duration;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Everything ends with the runtime.
pub(crate) struct Way {
    port: u16,
    route: watch::Sender<Route>,
    in_force: watch::Receiver<usize>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Route {
    /// To this port of 127.0.0.1.
    To(u16),
    /// Nobody listens.
    Refused,
    /// Connections are taken, and nothing ever comes back.
    Silent,
}

impl Way {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (route, routes) = watch::channel(Route::To(port));
        let (told, in_force) = watch::channel(0);
        tokio::spawn(serve(listener, own, routes, told));
        Self {
            port: own,
            route,
            in_force,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Open connections break off, and this is in force when it returns.
    pub(crate) async fn route(&self, route: Route) {
        let mut in_force = self.in_force.clone();
        let before = *in_force.borrow_and_update();
        self.route.send_replace(route);
        in_force.wait_for(|now| *now > before).await.unwrap();
    }
}

async fn serve(
    listener: TcpListener,
    port: u16,
    mut routes: watch::Receiver<Route>,
    told: watch::Sender<usize>,
) {
    let mut listener = Some(listener);
    loop {
        let route = *routes.borrow_and_update();
        if route == Route::Refused {
            listener = None;
        } else if listener.is_none() {
            listener = Some(bound(port).await);
        }
        told.send_modify(|times| *times += 1);
        let changed = match &listener {
            None => routes.changed().await,
            Some(listener) => loop {
                tokio::select! {
                    changed = routes.changed() => break changed,
                    Ok((stream, _)) = listener.accept() => {
                        tokio::spawn(pass(stream, route, routes.clone()));
                    }
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn bound(port: u16) -> TcpListener {
    loop {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn pass(mut near: TcpStream, route: Route, mut routes: watch::Receiver<Route>) {
    let passed = async {
        match route {
            Route::To(port) => {
                if let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await {
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            }
            Route::Refused | Route::Silent => std::future::pending().await,
        }
    };
    tokio::select! {
        () = passed => {}
        _ = routes.changed() => {}
    }
}
