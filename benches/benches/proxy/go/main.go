// The peer of the bench `proxy`: httputil.ReverseProxy with TLS on both sides and one static token, nothing else.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	upstream := flag.String("upstream", "", "URL of the API server")
	ca := flag.String("ca", "", "file with its CA")
	certificate := flag.String("cert", "", "file with our certificate")
	key := flag.String("key", "", "file with its key")
	idle := flag.Int("idle", 0, "idle connections kept to the API server; 0 is net/http's default of 2")
	flag.Parse()

	target, err := url.Parse(*upstream)
	check(err)
	pem, err := os.ReadFile(*ca)
	check(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("no certificate in ", *ca)
	}
	// As most programs have it: with a TLSClientConfig of one's own, and so without HTTP/2.
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots},
		MaxIdleConnsPerHost: *idle,
	}
	authorization := "Bearer " + os.Getenv("TOKEN")
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(request *httputil.ProxyRequest) {
			request.SetURL(target)
			request.Out.Header.Set("Authorization", authorization)
		},
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Printf("listening on https://%s\n", listener.Addr())
	go func() {
		// Whoever started us is gone.
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	check(http.ServeTLS(listener, proxy, *certificate, *key))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
