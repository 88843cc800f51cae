// An OpenID Connect provider for tests: the issuer, its clients and its people come as JSON in
// PROVIDER. Its own pages ask for a name (any password does) and for consent.
import Provider from "oidc-provider";

const given = JSON.parse(process.env.PROVIDER);
const provider = new Provider(given.issuer, {
  clients: given.clients,
  claims: { openid: ["sub"], email: ["email"], groups: ["groups"] },
  scopes: ["openid", "email", "groups"],
  conformIdTokenClaims: Boolean(given.lean), // then groups come from the user info only,
  pkce: { required: () => true },
  cookies: { keys: ["only for tests"] },
  findAccount: (_, id) =>
    id in given.people ? { accountId: id, claims: () => ({ sub: id, ...given.people[id] }) } : undefined,
});
provider.listen(new URL(given.issuer).port, "127.0.0.1", () => console.log("ready"));
