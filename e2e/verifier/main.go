// Command verifier is the other side of an EKS token: sigs.k8s.io/aws-iam-authenticator, which verifies tokens for API
// servers. STS, which it asks, is played by a transport that computes the signature anew.
//
//	verifier verify          reads a JSON object per line, answers with one
//	verifier mint ROUNDS     nanoseconds per token that the authenticator makes in process, its session kept
package main

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/credentials"
	"github.com/aws/aws-sdk-go/aws/session"
	v4 "github.com/aws/aws-sdk-go/aws/signer/v4"
	"github.com/aws/aws-sdk-go/service/sts"
	"sigs.k8s.io/aws-iam-authenticator/pkg/token"
)

// question is one token and the cluster whose verifier sees it.
type question struct {
	Token     string `json:"token"`
	Cluster   string `json:"cluster"`
	Partition string `json:"partition"`
	Region    string `json:"region"`
	// Keys are what STS knows: access key ID to secret access key.
	Keys map[string]string `json:"keys"`
}

type answer struct {
	Arn         string `json:"arn,omitempty"`
	AccessKeyID string `json:"accessKeyId,omitempty"`
	Host        string `json:"host,omitempty"`
	Error       string `json:"error,omitempty"`
}

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "verify":
		err = verify()
	case len(os.Args) == 3 && os.Args[1] == "mint":
		err = mint(os.Args[2])
	default:
		err = fmt.Errorf("usage: verifier verify | mint ROUNDS")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func verify() error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var asked question
		if err := in.Decode(&asked); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(judge(asked)); err != nil {
			return err
		}
	}
}

func judge(asked question) answer {
	stand := &standIn{keys: asked.Keys}
	// The verifier's client has no transport of its own.
	http.DefaultTransport = stand
	identity, err := token.NewVerifier(asked.Cluster, asked.Partition, asked.Region).Verify(asked.Token)
	if err != nil {
		return answer{Host: stand.host, Error: err.Error()}
	}
	return answer{Arn: identity.ARN, AccessKeyID: identity.AccessKeyID, Host: stand.host}
}

// standIn answers GetCallerIdentity as STS does: it signs what came in with the secret it knows, and compares.
type standIn struct {
	keys map[string]string
	host string
}

func (s *standIn) RoundTrip(request *http.Request) (*http.Response, error) {
	s.host = request.URL.Host
	id, problem := s.check(request)
	if problem != "" {
		return respond(request, http.StatusForbidden, map[string]any{"Error": map[string]string{"Code": problem}})
	}
	result := map[string]string{"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:user/" + id, "UserId": "AIDA" + id}
	return respond(request, http.StatusOK, map[string]any{
		"GetCallerIdentityResponse": map[string]any{"GetCallerIdentityResult": result},
	})
}

func (s *standIn) check(request *http.Request) (id, problem string) {
	query := request.URL.Query()
	scope := strings.Split(query.Get("X-Amz-Credential"), "/")
	date, err := time.Parse("20060102T150405Z", query.Get("X-Amz-Date"))
	if len(scope) != 5 || scope[4] != "aws4_request" || scope[3] != "sts" || err != nil {
		return "", "IncompleteSignature"
	}
	if age := time.Since(date); age > 15*time.Minute || age < -5*time.Minute {
		return "", "SignatureDoesNotMatch"
	}
	secret, known := s.keys[scope[0]]
	if !known {
		return "", "InvalidClientTokenId"
	}
	signature, err := s.sign(request, query, scope, secret, date)
	if err != nil || subtle.ConstantTimeCompare([]byte(signature), []byte(query.Get("X-Amz-Signature"))) != 1 {
		return "", "SignatureDoesNotMatch"
	}
	return scope[0], ""
}

// sign makes the same request anew: all parameters but the signer's own, and the headers that are said to be signed.
func (s *standIn) sign(request *http.Request, query url.Values, scope []string, secret string, date time.Time) (string, error) {
	expires, err := strconv.Atoi(query.Get("X-Amz-Expires"))
	if err != nil {
		return "", err
	}
	plain := url.Values{}
	for name, values := range query {
		if !strings.HasPrefix(name, "X-Amz-") {
			plain[name] = values
		}
	}
	again, err := http.NewRequest(request.Method, "https://"+request.URL.Host+request.URL.Path+"?"+plain.Encode(), nil)
	if err != nil {
		return "", err
	}
	for _, name := range strings.Split(query.Get("X-Amz-SignedHeaders"), ";") {
		if name != "host" {
			again.Header.Set(name, request.Header.Get(name))
		}
	}
	keys := credentials.NewStaticCredentials(scope[0], secret, query.Get("X-Amz-Security-Token"))
	if _, err = v4.NewSigner(keys).Presign(again, nil, scope[3], scope[2], time.Duration(expires)*time.Second, date); err != nil {
		return "", err
	}
	return again.URL.Query().Get("X-Amz-Signature"), nil
}

func respond(request *http.Request, status int, body any) (*http.Response, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Request: request, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(text))}, nil
}

func mint(rounds string) error {
	count, err := strconv.Atoi(rounds)
	if err != nil || count < 1 {
		return fmt.Errorf("not a number of rounds: %s", rounds)
	}
	config := aws.NewConfig().
		WithRegion("eu-west-1").
		WithSTSRegionalEndpoint(1).
		WithCredentials(credentials.NewStaticCredentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""))
	kept, err := session.NewSession(config)
	if err != nil {
		return err
	}
	generator, err := token.NewGenerator(false, false)
	if err != nil {
		return err
	}
	client := sts.New(kept)
	begin := time.Now()
	for range count {
		if _, err := generator.GetWithSTS("prod", client); err != nil {
			return err
		}
	}
	fmt.Println(time.Since(begin).Nanoseconds() / int64(count))
	return nil
}
