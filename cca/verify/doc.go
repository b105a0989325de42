// Package verify checks Arm CCA attestation tokens: their signatures, the
// binding of the realm's token to the platform's, and what a [Policy] asks of
// their claims.
//
// Sources: Arm DEN0137 "Realm Management Monitor specification" 1.0-rel0, A7.2;
// draft-ffm-rats-cca-token; RFC 9052 (COSE); RFC 9711 (EAT);
// draft-ietf-rats-msg-wrap (CMW). Every byte of a token is hostile.
package verify
