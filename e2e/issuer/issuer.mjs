// The two issuers of the test cluster, as one program.
//
//   node issuer.mjs CONFIG.json
//
// CONFIG: { "certificate": PEM file, "key": PEM file, "adminPort": n,
//           "issuers": [{ "name", "port", "algorithm", "idTokenSeconds", "shortIdTokenSeconds" }] }
//
// The admin port (plain HTTP, loopback) is the tests' way to make trouble; each answers 200 with JSON:
//   GET  /healthz                     every issuer has listened
//   POST /{issuer}/rotate?keep=true   a new signing key; keep=false also forgets the old ones
//   POST /{issuer}/delay?ms=500       every further answer comes that late
//   POST /{issuer}/token?late=5000    the token endpoint does its work at once and answers that late
//   POST /{issuer}/token?trouble=x    it does nothing: x is status (500), garbage (200), hang, reset; or none
//   POST /{issuer}/lifetimes?idToken=5   seconds, for tokens issued from now on
//   POST /{issuer}/stop | /start      connections are refused | answered again, on the same port
//   GET  /{issuer}/refresh-tokens?login=alice   how many are good: { "good": 1 }
//   GET  /{issuer}/grants             how often each grant type has succeeded and failed: { "success": {..}, "error": {..} }
import {
  createPrivateKey, createPublicKey, generateKeyPairSync, randomUUID, sign, verify,
} from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer as createHttp } from 'node:http';
import { createServer as createHttps } from 'node:https';
import { Provider, errors } from 'oidc-provider';

const HOST = '127.0.0.1';
const DEVICE_CODE = 'urn:ietf:params:oauth:grant-type:device_code';
// RFC 8693, which oidc-provider leaves to its users.
const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ID_TOKEN = 'urn:ietf:params:oauth:token-type:id_token';
const EXCHANGE_AUDIENCE = 'narrow';
const EXCHANGED_SECONDS = 300;

// Whoever isn't listed signs in as well: <login>@example.com, verified, in no group.
const USERS = {
  alice: { groups: ['team-a'] },
  bob: { groups: ['team-b'] },
  carol: { groups: [] },
  mallory: { groups: ['team-a'], emailVerified: false },
};

// Rows outlive a change of keys, which needs a new Provider.
class Store {
  constructor(rows, model) {
    this.rows = rows;
    this.model = model;
  }

  key(id) {
    return `${this.model}:${id}`;
  }

  async upsert(id, payload, expiresIn) {
    const until = expiresIn ? Date.now() + expiresIn * 1000 : Infinity;
    this.rows.set(this.key(id), { payload, until });
  }

  async find(id) {
    const row = this.rows.get(this.key(id));
    if (row && row.until <= Date.now()) {
      this.rows.delete(this.key(id));
      return undefined;
    }
    return row?.payload;
  }

  async findBy(field, value) {
    for (const [key, row] of this.rows) {
      if (key.startsWith(`${this.model}:`) && row.payload[field] === value && row.until > Date.now()) {
        return row.payload;
      }
    }
    return undefined;
  }

  findByUid(uid) {
    return this.findBy('uid', uid);
  }

  findByUserCode(userCode) {
    return this.findBy('userCode', userCode);
  }

  async consume(id) {
    const payload = await this.find(id);
    if (payload) payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    this.rows.delete(this.key(id));
  }

  async revokeByGrantId(grantId) {
    for (const [key, row] of this.rows) {
      if (row.payload.grantId === grantId) this.rows.delete(key);
    }
  }
}

class Issuer {
  constructor(settings, tls) {
    this.settings = settings;
    this.url = `https://${HOST}:${settings.port}`;
    this.rows = new Map();
    this.keys = [];
    this.delay = 0;
    this.late = 0;
    this.trouble = 'none';
    this.idToken = settings.idTokenSeconds;
    this.grants = { success: {}, error: {} };
    this.server = createHttps(tls, (request, response) => {
      setTimeout(() => this.answer(request, response), this.delay);
    });
    this.rotate(false);
  }

  answer(request, response) {
    if (request.method === 'POST' && request.url === '/token') {
      switch (this.trouble) {
        case 'status': response.writeHead(500).end('down'); return;
        case 'garbage': response.writeHead(200).end('<html>'); return;
        case 'reset': request.socket.destroy(); return;
        case 'hang': return;
        default:
      }
      const end = response.end.bind(response);
      response.end = (...body) => { setTimeout(() => end(...body), this.late); return response; };
    }
    this.handler(request, response);
  }

  rotate(keep) {
    const { algorithm } = this.settings;
    const { privateKey } = algorithm === 'RS256'
      ? generateKeyPairSync('rsa', { modulusLength: 2048 })
      : generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const key = { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), alg: algorithm, use: 'sig' };
    // The first key that fits signs.
    this.keys = keep ? [key, ...this.keys] : [key];
    const provider = new Provider(this.url, this.configuration());
    provider.registerGrantType(TOKEN_EXCHANGE, (ctx) => this.exchange(ctx), [
      'subject_token', 'subject_token_type', 'requested_token_type', 'audience',
    ]);
    provider.on('server_error', (_ctx, error) => console.error(error));
    for (const outcome of ['success', 'error']) {
      provider.on(`grant.${outcome}`, (ctx) => {
        const type = ctx.oidc?.params?.grant_type ?? 'unknown';
        this.grants[outcome][type] = (this.grants[outcome][type] ?? 0) + 1;
      });
    }
    this.handler = provider.callback();
  }

  // An ID token of this client becomes one of another audience.
  exchange(ctx) {
    const { params, client } = ctx.oidc;
    const claims = this.read(params.subject_token);
    if (params.subject_token_type !== ID_TOKEN || params.requested_token_type !== ID_TOKEN
      || claims?.aud !== client.clientId || claims.exp <= Date.now() / 1000) {
      throw new errors.InvalidRequest('no ID token of this client');
    }
    if (params.audience !== EXCHANGE_AUDIENCE) throw new errors.InvalidTarget('unknown audience');
    const iat = Math.floor(Date.now() / 1000);
    const { at_hash: _, nonce: __, ...rest } = claims;
    ctx.body = {
      access_token: this.sign({
        ...rest, aud: params.audience, azp: client.clientId, iat, exp: iat + EXCHANGED_SECONDS,
      }),
      issued_token_type: ID_TOKEN,
      token_type: 'N_A',
      expires_in: EXCHANGED_SECONDS,
    };
  }

  sign(claims) {
    const [jwk] = this.keys;
    const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const text = `${encode({ alg: jwk.alg, kid: jwk.kid, typ: 'JWT' })}.${encode(claims)}`;
    const key = { key: createPrivateKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
    return `${text}.${sign('sha256', Buffer.from(text), key).toString('base64url')}`;
  }

  // The claims of a token that one of our keys signed.
  read(token) {
    const [header, claims, signature] = (token ?? '').split('.');
    const signed = (jwk) => {
      const key = { key: createPublicKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
      return verify('sha256', Buffer.from(`${header}.${claims}`), key, Buffer.from(signature ?? '', 'base64url'));
    };
    return this.keys.some(signed) ? JSON.parse(Buffer.from(claims, 'base64url')) : undefined;
  }

  goodRefreshTokens(login) {
    const good = ([key, { payload, until }]) => key.startsWith('RefreshToken:')
      && payload.accountId === login && !payload.consumed && until > Date.now();
    return [...this.rows].filter(good).length;
  }

  listen() {
    return new Promise((resolve, reject) => {
      this.server.once('error', reject);
      this.server.listen(this.settings.port, HOST, resolve);
    });
  }

  close() {
    return new Promise((resolve) => {
      this.server.close(resolve);
      this.server.closeAllConnections();
    });
  }

  configuration() {
    const { rows, keys } = this;
    const { name, algorithm } = this.settings;
    return {
      adapter: (model) => new Store(rows, model),
      jwks: { keys },
      clients: ['kubernetes', 'kubernetes-short', 'portal'].map((id) => this.client(id)),
      claims: {
        openid: ['sub'],
        email: ['email', 'email_verified'],
        profile: ['name', 'preferred_username'],
        groups: ['groups'],
      },
      // Clusters read e-mail and groups from the ID token itself.
      conformIdTokenClaims: false,
      // Both issuers are on one host, and cookies don't know ports.
      cookies: {
        names: { session: `${name}_session`, interaction: `${name}_interaction`, resume: `${name}_resume` },
        keys: [randomUUID()],
      },
      enabledJWA: { idTokenSigningAlgValues: [algorithm] },
      features: { devInteractions: { enabled: true }, deviceFlow: { enabled: true }, revocation: { enabled: true } },
      findAccount: (_ctx, login) => this.account(login),
      issueRefreshToken: (_ctx, client) => client.grantTypeAllowed('refresh_token'),
      expiresWithSession: () => false,
      rotateRefreshToken: true,
      pkce: { required: () => true },
      ttl: {
        IdToken: (_ctx, _token, client) => (
          client.clientId === 'kubernetes-short' ? this.settings.shortIdTokenSeconds : this.idToken),
        AccessToken: 3600,
        RefreshToken: 14 * 24 * 3600,
      },
    };
  }

  // Public and native: a loopback redirect URI matches on every port (RFC 8252 section 7.3).
  client(id) {
    return {
      client_id: id,
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      id_token_signed_response_alg: this.settings.algorithm,
      grant_types: ['authorization_code', 'refresh_token', DEVICE_CODE, TOKEN_EXCHANGE],
      response_types: ['code'],
      redirect_uris: ['127.0.0.1', 'localhost', '[::1]'].flatMap((host) => (
        [`http://${host}/callback`, `http://${host}/`])),
    };
  }

  account(login) {
    if (!/^[a-z][a-z0-9-]{0,62}$/.test(login)) return undefined;
    const user = USERS[login] ?? { groups: [] };
    return {
      accountId: login,
      claims: () => ({
        sub: login,
        email: `${login}@example.com`,
        email_verified: user.emailVerified ?? true,
        name: login,
        preferred_username: login,
        groups: user.groups,
      }),
    };
  }

  async command(method, verb, query) {
    switch (`${method} ${verb}`) {
      case 'POST rotate': return this.rotate(query.get('keep') !== 'false');
      case 'POST delay': this.delay = Number(query.get('ms')); return undefined;
      case 'POST token':
        this.late = Number(query.get('late') ?? 0);
        this.trouble = query.get('trouble') ?? 'none';
        return undefined;
      case 'GET refresh-tokens': return { good: this.goodRefreshTokens(query.get('login')) };
      case 'POST lifetimes': this.idToken = Number(query.get('idToken')); return undefined;
      case 'POST stop': return this.close();
      case 'POST start': return this.listen();
      case 'GET grants': return this.grants;
      default: throw new Error(`no such command: ${method} ${verb}`);
    }
  }
}

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const tls = { cert: readFileSync(config.certificate), key: readFileSync(config.key) };
const issuers = new Map(config.issuers.map((settings) => [settings.name, new Issuer(settings, tls)]));
await Promise.all([...issuers.values()].map((issuer) => issuer.listen()));

createHttp(async (request, response) => {
  const url = new URL(request.url, `http://${HOST}`);
  const [, name, verb] = url.pathname.split('/');
  let status = 200;
  let body = {};
  try {
    if (name !== 'healthz') {
      if (!issuers.has(name)) throw new Error(`no such issuer: ${name}`);
      body = await issuers.get(name).command(request.method, verb, url.searchParams) ?? {};
    }
  } catch (error) {
    status = 400;
    body = { error: error.message };
  }
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}).listen(config.adminPort, HOST);
