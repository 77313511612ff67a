module kube-authn/benches/proxy

go 1.24
